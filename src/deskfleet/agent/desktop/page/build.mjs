// Builds the page into bundle/: one script, one style sheet, named by their content, and the two
// documents that point at them. Run `npm ci --ignore-scripts` first.

import { cp, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const folder = fileURLToPath(new URL(".", import.meta.url));
const bundle = `${folder}bundle/`;
const notice = "/* Contains noVNC, MPL-2.0, unchanged: https://github.com/novnc/noVNC (1.7.0) */";

await rm(bundle, { recursive: true, force: true });
await mkdir(bundle);

const { metafile } = await build({
  absWorkingDir: folder,
  entryPoints: ["main.js", "style.css", "favicon.svg"],
  entryNames: "[name]-[hash]",
  outdir: bundle,
  loader: { ".svg": "copy" },
  bundle: true,
  format: "esm",
  minify: true,
  target: "es2022",
  banner: { js: notice },
  metafile: true,
  logLevel: "warning",
});

const names = Object.fromEntries(
  Object.entries(metafile.outputs)
    .filter(([, { entryPoint }]) => entryPoint)
    .map(([path, { entryPoint }]) => [entryPoint, basename(path)]),
);
for (const [path, { inputs }] of Object.entries(metafile.outputs)) {
  // A copied file is no entry point to esbuild.
  if (path.endsWith(".svg")) names[Object.keys(inputs)[0]] = basename(path);
}

for (const document of ["index.html", "refused.html"]) {
  const text = await readFile(`${folder}${document}`, "utf8");
  const named = text.replaceAll(/bundle\/([\w.]+)/g, (_, name) => `bundle/${names[name]}`);
  await writeFile(`${bundle}${document}`, named);
}
await cp(`${folder}node_modules/@novnc/novnc/LICENSE.txt`, `${bundle}noVNC-LICENSE.txt`);
