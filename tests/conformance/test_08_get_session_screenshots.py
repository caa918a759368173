"""GetSessionScreenshots: screenshots of one or more sessions."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import pytest
from PIL import Image

from deskfleet.core.pictures import MOST_PIXELS
from deskfleet.core.records import Phase
from support.conformance import UNKNOWN_ID, Api, Play, on
from support.waiting import until

NOT_FOUND = "Dcv session not found."
DEFAULT = (160, 100)


def images(api: Api, session_id: str, **sizes: int | None) -> list[dict[str, Any]]:
    item = {"SessionId": session_id, **sizes}
    answer = api.call("getSessionScreenshots", [item])
    assert answer["UnsuccessfulList"] == []
    shot = answer["SuccessfulList"][0]["SessionScreenshot"]
    assert shot["SessionId"] == session_id
    return list(shot["Images"])


def size_of(image: dict[str, Any]) -> tuple[int, int]:
    with Image.open(io.BytesIO(base64.b64decode(image["Data"], validate=True))) as picture:
        assert (picture.format or "").lower() == image["Format"]
        return picture.size


def failure(api: Api, session_id: str, **sizes: int) -> str:
    item = {"SessionId": session_id, **sizes}
    answer = api.call("getSessionScreenshots", [item])
    assert answer["SuccessfulList"] == []
    return str(answer["UnsuccessfulList"][0]["FailureReason"])


class TestRequestParameters:
    def test_session_id(self, api: Api, session: str) -> None:
        assert images(api, session)

    def test_session_id_is_required(self, api: Api) -> None:
        answer = api.call("getSessionScreenshots", [{}])
        assert answer["UnsuccessfulList"][0]["FailureReason"] == NOT_FOUND

    @pytest.mark.own_broker
    @pytest.mark.parametrize("sizes", [{}, {"MaxWidth": None, "MaxHeight": None}])
    def test_without_sizes_those_of_the_broker_hold(
        self, api: Api, session: str, sizes: dict[str, None]
    ) -> None:
        assert size_of(images(api, session, **sizes)[0]) == DEFAULT

    @pytest.mark.own_broker
    @pytest.mark.parametrize(
        ("sizes", "expected"),
        [
            ({"MaxWidth": 640, "MaxHeight": 4000}, (640, 400)),
            ({"MaxWidth": 4000, "MaxHeight": 400}, (640, 400)),
            ({"MaxWidth": 80}, (80, 50)),
            ({"MaxHeight": 50}, (80, 50)),
            ({"MaxWidth": 800, "MaxHeight": 600}, (800, 500)),
            ({"MaxWidth": 1280, "MaxHeight": 800}, (1280, 800)),
            ({"MaxWidth": 3840, "MaxHeight": 2160}, (1280, 800)),
            ({"MaxWidth": 2**63 - 1, "MaxHeight": 2**63 - 1}, (1280, 800)),
        ],
        ids=str,
    )
    def test_sizes_keep_the_aspect_and_never_enlarge(
        self, api: Api, session: str, sizes: dict[str, int], expected: tuple[int, int]
    ) -> None:
        assert size_of(images(api, session, **sizes)[0]) == expected

    @pytest.mark.own_broker
    def test_no_server_is_asked_for_more_than_a_screen_has(
        self, api: Api, owner: str, play: Play
    ) -> None:
        server = play()
        session_id = api.ready(owner, **on(server))
        images(api, session_id, MaxWidth=2**63 - 1, MaxHeight=MOST_PIXELS + 1)
        images(api, session_id, MaxWidth=7, MaxHeight=MOST_PIXELS)
        asked = [(wish.max_width, wish.max_height) for wish in server.wishes]
        assert asked == [(MOST_PIXELS, MOST_PIXELS), (7, MOST_PIXELS)]

    def test_sizes_are_limits(self, api: Api, session: str) -> None:
        width, height = size_of(images(api, session, MaxWidth=80, MaxHeight=60)[0])
        assert width <= 80
        assert height <= 60

    @pytest.mark.own_broker
    def test_one_pixel(self, api: Api, session: str) -> None:
        assert size_of(images(api, session, MaxWidth=1, MaxHeight=1)[0]) == (1, 1)

    @pytest.mark.parametrize("member", ["MaxWidth", "MaxHeight"])
    @pytest.mark.parametrize("size", [0, -1])
    def test_a_size_must_be_greater_than_0(
        self, api: Api, session: str, member: str, size: int
    ) -> None:
        item = {"SessionId": session, member: size}
        assert member in api.refused("getSessionScreenshots", [item])


class TestResponseParameters:
    def test_request_id_is_unique(self, api: Api) -> None:
        calls = [api.call("getSessionScreenshots", []) for _ in range(3)]
        assert len({one["RequestId"] for one in calls}) == 3

    def test_both_lists_are_there_when_they_are_empty(self, api: Api) -> None:
        answer = api.call("getSessionScreenshots", [])
        assert (answer["SuccessfulList"], answer["UnsuccessfulList"]) == ([], [])

    def test_images_format(self, api: Api, session: str) -> None:
        assert images(api, session)[0]["Format"] in {"png", "jpeg"}

    @pytest.mark.own_broker
    def test_images_format_is_png_by_default(self, api: Api, session: str) -> None:
        assert images(api, session)[0]["Format"] == "png"

    def test_images_data_is_a_picture_in_base64(self, api: Api, session: str) -> None:
        assert size_of(images(api, session)[0])

    def test_images_creation_time(self, api: Api, session: str) -> None:
        assert images(api, session)[0]["CreationTime"].endswith("Z")

    def test_images_primary_is_true_of_the_first_alone(self, api: Api, session: str) -> None:
        told = [one["Primary"] for one in images(api, session)]
        assert told == [True] + [False] * (len(told) - 1)

    @pytest.mark.own_broker
    def test_images_one_for_each_screen_the_primary_one_first(
        self, api: Api, owner: str, play: Play
    ) -> None:
        server = play()
        server.screens = ((1600, 1200), (800, 600), (640, 640))
        session_id = api.ready(owner, **on(server))
        found = images(api, session_id, MaxWidth=10_000, MaxHeight=10_000)
        assert [one["Primary"] for one in found] == [True, False, False]
        assert sorted(size_of(one) for one in found) == [(640, 640), (800, 600), (1600, 1200)]
        assert size_of(found[0]) == (1600, 1200)

    @pytest.mark.parametrize(
        "request_data",
        [{"SessionId": UNKNOWN_ID}, {"SessionId": "x", "MaxWidth": 800, "MaxHeight": 600}],
    )
    def test_unsuccessful_list_repeats_the_request(
        self, api: Api, request_data: dict[str, object]
    ) -> None:
        (refused,) = api.call("getSessionScreenshots", [request_data])["UnsuccessfulList"]
        assert refused["GetSessionScreenshotRequestData"] == request_data

    def test_unsuccessful_list_failure_reason(self, api: Api) -> None:
        assert failure(api, UNKNOWN_ID) == NOT_FOUND

    def test_one_failure_does_not_hold_up_the_others(self, api: Api, session: str) -> None:
        items = [{"SessionId": UNKNOWN_ID}, {"SessionId": session}]
        answer = api.call("getSessionScreenshots", items)
        assert len(answer["SuccessfulList"]) == len(answer["UnsuccessfulList"]) == 1


@pytest.mark.own_broker
class TestWhatCannotBeSeen:
    def test_a_session_that_is_not_ready(self, api: Api, owner: str, play: Play) -> None:
        server = play()
        server.starts = Phase.STARTING
        session_id = api.create(owner, **on(server))["Id"]
        until(lambda: server.starts_asked)
        assert "CREATING" in failure(api, session_id)

    def test_a_deleted_session(self, api: Api, owner: str, session: str) -> None:
        api.delete(session, owner)
        api.wait(session, "DELETED")
        assert failure(api, session) == NOT_FOUND

    def test_a_session_whose_server_is_lost(self, api: Api, owner: str, play: Play) -> None:
        server = play()
        session_id = api.ready(owner, **on(server))
        server.cut()
        api.wait(session_id, "UNKNOWN")
        assert "UNKNOWN" in failure(api, session_id)


@pytest.mark.own_broker
class TestSeveralAtOnce:
    def test_a_server_that_does_not_answer_costs_its_own_sessions_alone(
        self, api: Api, owner: str, play: Play
    ) -> None:
        slow = [play(), play()]
        for server in slow:
            server.screens = None
        stuck = [api.ready(owner, **on(server)) for server in slow for _ in range(2)]
        seen = api.ready(owner, **on(play()))
        began = time.monotonic()
        items = [{"SessionId": id} for id in (*stuck, seen)]
        answer = api.call("getSessionScreenshots", items)
        # One limit for all of them, not one after the other.
        assert time.monotonic() - began < 15
        (shot,) = answer["SuccessfulList"]
        assert shot["SessionScreenshot"]["SessionId"] == seen
        late = [
            one["GetSessionScreenshotRequestData"]["SessionId"]
            for one in answer["UnsuccessfulList"]
        ]
        assert late == stuck

    def test_the_same_session_stands_as_often_as_it_is_asked_for(
        self, api: Api, owner: str, play: Play
    ) -> None:
        server = play()
        session_id = api.ready(owner, **on(server))
        small, large = {"SessionId": session_id}, {"SessionId": session_id, "MaxWidth": 1000}
        answer = api.call("getSessionScreenshots", [small, large, small, large, small])
        shots = [one["SessionScreenshot"] for one in answer["SuccessfulList"]]
        assert shots[0] == shots[2] == shots[4] != shots[1] == shots[3]
        assert len(server.wishes) == 2

    def test_more_than_a_few_sessions_in_one_call(self, api: Api, owner: str) -> None:
        sessions = [api.ready(owner) for _ in range(12)]
        answer = api.call("getSessionScreenshots", [{"SessionId": id} for id in sessions])
        assert [
            one["SessionScreenshot"]["SessionId"] for one in answer["SuccessfulList"]
        ] == sessions


class TestExample:
    def test_a_session_that_does_not_exist(self, api: Api, session: str) -> None:
        items = [
            {"SessionId": session, "MaxWidth": 800, "MaxHeight": 600},
            {"SessionId": "sessionId2", "MaxWidth": 800, "MaxHeight": 600},
        ]
        answer = api.call("getSessionScreenshots", items)
        assert answer["SuccessfulList"][0]["SessionScreenshot"]["SessionId"] == session
        assert answer["UnsuccessfulList"] == [
            {"GetSessionScreenshotRequestData": items[1], "FailureReason": NOT_FOUND}
        ]
