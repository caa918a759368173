"""The calls of the developer guide's Python examples, on a client that was generated.

Imports, classes, methods and argument names are those of the guide; a client written from it has
the same. Two things are ours: the broker's address and credentials come from the environment, and
answers are printed as one JSON line each. (The guide imports GetSessionScreenshotRequestData from
a module that doesn't hold it and calls it on the wrong class; here it comes from its own.)

Run as a program: reads `[[function, [arguments], {named arguments}], ...]` from stdin.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from typing import Any

import requests
import swagger_client
from swagger_client.exceptions import ApiException
from swagger_client.models import CloseServerRequestData, OpenServerRequestData
from swagger_client.models.create_session_request_data import CreateSessionRequestData
from swagger_client.models.delete_session_request_data import DeleteSessionRequestData
from swagger_client.models.describe_servers_request_data import DescribeServersRequestData
from swagger_client.models.describe_sessions_request_data import DescribeSessionsRequestData
from swagger_client.models.get_session_screenshot_request_data import (
    GetSessionScreenshotRequestData,
)
from swagger_client.models.key_value_pair import KeyValuePair
from swagger_client.models.update_session_permissions_request_data import (
    UpdateSessionPermissionsRequestData,
)

__CLIENT_ID = os.environ["EXAMPLES_CLIENT_ID"]
__CLIENT_SECRET = os.environ["EXAMPLES_CLIENT_SECRET"]
__PROTOCOL_HOST_PORT = os.environ["EXAMPLES_PROTOCOL_HOST_PORT"]
# requests finds the same file by REQUESTS_CA_BUNDLE, so that `verify=True` stands as it is.
CA_FILE = os.environ["REQUESTS_CA_BUNDLE"]


def show(call: str, answer: Any) -> None:
    print(json.dumps({"call": call, "answer": answer}, default=str))


def build_client_credentials() -> str:
    client_credentials = f"{__CLIENT_ID}:{__CLIENT_SECRET}"
    return base64.b64encode(client_credentials.encode("utf-8")).decode("utf-8")


def get_access_token() -> str:
    headers = {
        "Authorization": f"Basic {build_client_credentials()}",
        "Content-Type": "application/x-www-form-urlencoded",
    }
    endpoint = __PROTOCOL_HOST_PORT + "/oauth2/token?grant_type=client_credentials"
    res = requests.post(endpoint, headers=headers, verify=True, timeout=30)
    if res.status_code != 200:
        raise SystemExit(f"Cannot get access token: {res.status_code}")
    token: str = json.loads(res.text)["access_token"]
    return token


def get_client_configuration() -> Any:
    configuration = swagger_client.Configuration()
    configuration.host = __PROTOCOL_HOST_PORT
    configuration.verify_ssl = True
    configuration.ssl_ca_cert = CA_FILE
    return configuration


def set_request_headers(api_client: Any) -> None:
    access_token = get_access_token()
    api_client.set_default_header(
        header_name="Authorization", header_value=f"Bearer {access_token}"
    )


def get_sessions_api() -> Any:
    api_instance = swagger_client.SessionsApi(swagger_client.ApiClient(get_client_configuration()))
    set_request_headers(api_instance.api_client)
    return api_instance


def get_servers_api() -> Any:
    api_instance = swagger_client.ServersApi(swagger_client.ApiClient(get_client_configuration()))
    set_request_headers(api_instance.api_client)
    return api_instance


def get_session_permissions_api() -> Any:
    api_instance = swagger_client.SessionPermissionsApi(
        swagger_client.ApiClient(get_client_configuration())
    )
    set_request_headers(api_instance.api_client)
    return api_instance


def get_session_connection_api() -> Any:
    api_instance = swagger_client.GetSessionConnectionDataApi(
        swagger_client.ApiClient(get_client_configuration())
    )
    set_request_headers(api_instance.api_client)
    return api_instance


def describe_sessions(
    session_ids: Any = None, next_token: Any = None, tags: Any = None, owner: Any = None
) -> None:
    filters = [KeyValuePair(key="tag:" + tag["Key"], value=tag["Value"]) for tag in tags or ()]
    if owner:
        filters.append(KeyValuePair(key="owner", value=owner))
    request = DescribeSessionsRequestData(
        session_ids=session_ids, filters=filters, next_token=next_token
    )
    api_response = get_sessions_api().describe_sessions(body=request)
    show("describe_sessions", api_response.to_dict())


def create_sessions(sessions_to_create: Any) -> None:
    create_sessions_request = [
        CreateSessionRequestData(
            name=name,
            owner=owner,
            type=session_type,
            init_file_path=init_file_path,
            autorun_file=autorun_file,
            autorun_file_arguments=autorun_file_arguments,
            max_concurrent_clients=max_concurrent_clients,
            dcv_gl_enabled=dcv_gl_enabled,
            permissions_file=permissions_file,
            requirements=requirements,
            storage_root=storage_root,
        )
        for (
            name,
            owner,
            session_type,
            init_file_path,
            autorun_file,
            autorun_file_arguments,
            max_concurrent_clients,
            dcv_gl_enabled,
            permissions_file,
            requirements,
            storage_root,
        ) in sessions_to_create
    ]
    api_response = get_sessions_api().create_sessions(body=create_sessions_request)
    show("create_sessions", api_response.to_dict())


def delete_sessions(sessions_to_delete: Any, force: bool = False) -> None:  # noqa: FBT002
    delete_sessions_request = [
        DeleteSessionRequestData(session_id=session_id, owner=owner, force=force)
        for session_id, owner in sessions_to_delete
    ]
    api_response = get_sessions_api().delete_sessions(body=delete_sessions_request)
    show("delete_sessions", api_response.to_dict())


def get_session_screenshots(
    session_ids: Any, max_width: Any = None, max_height: Any = None
) -> None:
    request = [
        GetSessionScreenshotRequestData(
            session_id=session_id, max_width=max_width, max_height=max_height
        )
        for session_id in session_ids
    ]
    api_response = get_sessions_api().get_session_screenshots(body=request)
    show("get_session_screenshots", api_response.to_dict())


def update_session_permissions(session_permissions_to_update: Any) -> None:
    update_session_permissions_request = [
        UpdateSessionPermissionsRequestData(
            session_id=session_id, owner=owner, permissions_file=permissions_base64_encoded
        )
        for session_id, owner, permissions_base64_encoded in session_permissions_to_update
    ]
    api_response = get_session_permissions_api().update_session_permissions(
        body=update_session_permissions_request
    )
    show("update_session_permissions", api_response.to_dict())


def get_url_to_connect(api_response: Any) -> str:
    ip_address = api_response.session.server.ip
    port = api_response.session.server.port
    web_url_path = api_response.session.server.web_url_path
    connection_token = api_response.connection_token
    session_id = api_response.session.id
    return f"https://{ip_address}:{port}{web_url_path}?authToken={connection_token}#{session_id}"


def get_session_connection_data(session_id: Any, user: Any) -> None:
    api_response = get_session_connection_api().get_session_connection_data(
        session_id=session_id, user=user
    )
    show("get_session_connection_data", api_response.to_dict())
    show("get_url_to_connect", get_url_to_connect(api_response))


def describe_servers(
    server_ids: Any = None, next_token: Any = None, max_results: Any = None
) -> None:
    request = DescribeServersRequestData(
        server_ids=server_ids, next_token=next_token, max_results=max_results
    )
    api_response = get_servers_api().describe_servers(body=request)
    show("describe_servers", api_response.to_dict())


def open_servers(server_ids: Any) -> None:
    request = [OpenServerRequestData(server_id=server_id) for server_id in server_ids]
    api_response = get_servers_api().open_servers(body=request)
    show("open_servers", api_response.to_dict())


def close_servers(server_ids: Any) -> None:
    request = [CloseServerRequestData(server_id=server_id) for server_id in server_ids]
    api_response = get_servers_api().close_servers(body=request)
    show("close_servers", api_response.to_dict())
    open_servers(server_ids)


def main() -> None:
    for call, arguments, named in json.load(sys.stdin):
        try:
            globals()[call](*arguments, **named)
        except ApiException as error:
            show(call, {"status": error.status, "body": error.body})


if __name__ == "__main__":
    main()
