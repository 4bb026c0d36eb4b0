"""A form: the request body of a browser, with the image as one of its fields (RFC 7578)."""

from collections.abc import AsyncGenerator

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from server.errors import InvalidError
from server.requests.body import join

FORM = "multipart/form-data"
FIELD = "image"
PIECE_BYTES = 64 * 1024


async def read_form(headers: Headers, pieces: AsyncGenerator[bytes, None]) -> bytes:
    """The file in field `image` of the form that comes in `pieces`. Raises InvalidError."""
    try:
        parser = FormParser(headers, pieces, max_files=1, max_fields=16)
        fields = await parser.parse()
    except (MultiPartException, KeyError) as error:
        problem = str(error).rstrip(".")
        sentence = f"the form cannot be read: {problem}; send one file, in field `image`"
        raise InvalidError(sentence, "bad_form") from error
    try:
        if not isinstance(fields.get(FIELD), UploadFile):
            problem = "has no file in field `image`; send the image there"
            if not parser.ended:
                problem = "is cut off: its last boundary is missing; send the whole of it"
            raise InvalidError(f"the form {problem}", "bad_form")
        return await join(parser.file_pieces())
    finally:
        parser.close()


class FormParser(MultiPartParser):
    """Parses a form as it comes, and keeps its only file in memory, never on disk. `ended`: its last boundary has come.

    Texts are UTF-8, whatever `charset` the form names: some take time that grows with the square of the text.
    """

    def __init__(
        self, headers: Headers, pieces: AsyncGenerator[bytes, None], *, max_files: int, max_fields: int
    ) -> None:
        super().__init__(headers, pieces, max_files=max_files, max_fields=max_fields)
        self._pieces: list[bytes] = []
        self._last = bytearray()
        self.ended = False

    def on_end(self) -> None:
        super().on_end()
        self.ended = True

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self._charset = "utf-8"

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            super().on_part_data(data, start, end)
            return
        self._last += data[start:end]
        if len(self._last) >= PIECE_BYTES:  # a file may come in many tiny parts, each of which would take memory
            self._pieces.append(bytes(self._last))
            self._last.clear()

    def close(self) -> None:
        """Close the file, which may be cut off and then is in no field of the form."""
        for file in self._files_to_close_on_error:
            file.close()

    def file_pieces(self) -> list[bytes]:
        """The bytes of the file."""
        return [*self._pieces, bytes(self._last)]
