"""Flow control: whether a connection is read."""

from uvicorn.protocols.http.flow_control import FlowControl


class HeldFlow(FlowControl):
    """uvicorn's flow control. While it is `held`, nothing is read, whatever the application waits for."""

    held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()
