"""Flow control: when reading from a connection is paused."""

from uvicorn.protocols.http.flow_control import FlowControl


class HeldFlow(FlowControl):
    """uvicorn's flow control. While `held` is True, reading stays paused even if the application waits for a body."""

    held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()
