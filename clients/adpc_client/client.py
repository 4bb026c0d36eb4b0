"""`Client` is the synchronous client; `async_client` holds its counterpart for asyncio."""

from collections.abc import Mapping
from types import TracebackType

import httpx

from adpc_client.follow import Follow, FollowRequest
from adpc_client.images import CAMERA_JPEG_QUALITY, ImageSource, encode_image
from adpc_client.options import Box, Classes, Encoding, Extra, Options, Timeout
from adpc_client.pool import Pool
from adpc_client.results import Model, Prediction
from adpc_client.sources import FollowSource, open_source
from adpc_client.stream import Stream, StreamRequest
from adpc_client.transport import CONNECTION_LIMITS, Endpoint, id_header, json_body, model_path, request_path
from adpc_client.wire import read_model, read_models, read_prediction


class Client:
    """A client of one server. Its connections stay open for later requests, and threads may share it.

    >>> with Client("http://localhost:8000") as client:
    ...     prediction = client.predict("photo.jpg", deadline_ms=200)
    ...     prediction.exit, prediction.stop, prediction.mask.shape
    ...     with client.stream("photo.jpg", deadline_ms=500) as stream:
    ...         for exit in stream:
    ...             print(exit.exit, exit.elapsed_ms, exit.unsure)

    Every request sends `headers`. The constructor raises ValueError if `url` is not an http(s) URL. Methods raise the
    errors of `adpc_client.errors`, and ValueError for an infinite deadline.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        headers: Mapping[str, str] | None = None,
        timeout: Timeout | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._endpoint = Endpoint(url, dict(headers or {}), timeout or Timeout())
        self._http = httpx.Client(
            headers=self._endpoint.headers,
            limits=CONNECTION_LIMITS,
            proxy=None if transport else self._endpoint.proxy,
            verify=self._endpoint.tls,
            trust_env=False,  # the endpoint has read the environment, for HTTP and WebSocket alike
            transport=transport,
        )
        self._pool = Pool(self._endpoint)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every idle connection."""
        self._http.close()
        self._pool.close()

    def predict(
        self,
        image: ImageSource,
        *,
        model: str | None = None,
        deadline_ms: float | None = None,
        min_exit: int | None = None,
        max_exit: int | None = None,
        quality: float | None = None,
        best_effort: bool | None = None,
        extra: Extra | None = None,
        box: Box | None = None,
        priority: int | None = None,
        classes: Classes | None = None,
        roi: Box | None = None,
        captured_at: float | None = None,
        meta: str | None = None,
        id: str | None = None,
        bgr: bool = False,
        jpeg_quality: int | None = None,
    ) -> Prediction:
        """The answer of the deepest exit that the server finishes before `deadline_ms`, counted from its arrival there.

        The server stops after `max_exit`, or once at most `quality` of the pixels would still change. If it does not
        reach `min_exit` in time, it sends no answer, unless `best_effort` accepts an earlier exit. `extra` names a
        second map. `box` is the person whose pose is wanted. Further exits of requests of `priority` 2 come before
        those of 1 and 0. Of a segmentation, only `classes` are sent and only `roi` is computed; other pixels are 255.
        The deadline counts from `captured_at`, in Unix seconds, if the image was taken before the request arrives.
        `meta`, at most 256 bytes of printable text, comes back with the answer. `id` names the request for `cancel`. An
        array is BGR if `bgr` is set; arrays and Pillow images travel as PNG, or as JPEG of `jpeg_quality`, 1..100,
        which is faster. Raises NoExitError if no exit, or not `min_exit`, came in time.
        """
        options = Options.of(locals())
        data, content_type = encode_image(image, bgr=bgr, jpeg_quality=jpeg_quality)
        headers = {"Content-Type": content_type, "Accept": "application/json", **id_header(id)}
        return read_prediction(
            json_body(
                self._request("POST", "/v1/predict", deadline_ms, params=options.query(), headers=headers, content=data)
            )
        )

    def stream(
        self,
        image: ImageSource,
        *,
        model: str | None = None,
        deadline_ms: float | None = None,
        min_exit: int | None = None,
        max_exit: int | None = None,
        quality: float | None = None,
        best_effort: bool | None = None,
        extra: Extra | None = None,
        box: Box | None = None,
        priority: int | None = None,
        classes: Classes | None = None,
        roi: Box | None = None,
        captured_at: float | None = None,
        meta: str | None = None,
        encoding: Encoding = "delta",
        id: str | None = None,
        bgr: bool = False,
        jpeg_quality: int | None = None,
    ) -> Stream:
        """An iterator over the exits, each sent as soon as it is finished. `predict` explains the options."""
        options = Options.of(locals())
        data, _ = encode_image(image, bgr=bgr, jpeg_quality=jpeg_quality)
        return Stream(self._pool, StreamRequest(data, options, encoding, id))

    def follow(
        self,
        source: FollowSource,
        *,
        fps: float | None = None,
        model: str | None = None,
        deadline_ms: float | None = None,
        min_exit: int | None = None,
        max_exit: int | None = None,
        quality: float | None = None,
        best_effort: bool | None = None,
        extra: Extra | None = None,
        box: Box | None = None,
        priority: int | None = None,
        classes: Classes | None = None,
        roi: Box | None = None,
        meta: str | None = None,
        bgr: bool = False,
        jpeg_quality: int | None = CAMERA_JPEG_QUALITY,
    ) -> Follow:
        """An iterator over the frames of a camera, a video, a folder or your own loop, each with the latest answer.

        >>> for frame, found in client.follow("camera:0"):
        ...     show(found.overlay(found.frame), found.age_s)

        `open_source` says what may be a source, and what `fps` does. One frame is asked for at a time. If the source
        goes on by itself (a camera, a video, a callable, anything with `fps`), the newest frame is next, and without
        `deadline_ms` its deadline is the next frame; only a first exit is waited for longer. If a frame gets no answer,
        `found` is the latest one with its age and the error, and a lost connection is opened again. Frames before the
        first answer are left out. There is no `captured_at`, since each frame has a time of its own. Each frame of
        another source is answered in turn; those that fail are left out and listed as `failures`.

        Raises the error of a request that no frame can mend, such as an unknown model; that of a connection, unless
        it had worked before; and the latest error if the server has not answered any frame for 10 s.
        """
        options = Options.of(locals())
        request = FollowRequest(options, bgr, jpeg_quality)
        return Follow(self._endpoint, open_source(source, fps, bgr=bgr), request)

    def cancel(self, id: str) -> None:
        """Cancel the request that has this `id`, unless it has ended. Raises NotFoundError if the server knows none."""
        response = self._request("DELETE", request_path(id))
        if not response.is_success:
            json_body(response)

    def models(self) -> tuple[Model, ...]:
        """The models that the server offers."""
        return read_models(json_body(self._request("GET", "/v1/models")))

    def model(self, name: str) -> Model:
        """The model called `name`. Raises NotFoundError if the server has none."""
        return read_model(json_body(self._request("GET", model_path(name))))

    def ready(self) -> bool:
        """Whether the server accepts requests now: it has started and warmed up, and is not draining."""
        return self._request("GET", "/health/ready").is_success

    def _request(self, method: str, path: str, deadline_ms: float | None = None, **parts: object) -> httpx.Response:
        with self._endpoint.http_errors():
            timeout = self._endpoint.http_timeout(deadline_ms)
            return self._http.request(method, self._endpoint.url + path, timeout=timeout, **parts)  # type: ignore[arg-type]
