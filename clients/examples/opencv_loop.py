"""Shows what a camera or a video shows, with its masks: `python opencv_loop.py [0|FILE] [URL]`. Escape ends it.

It needs opencv-python. The mask is drawn over the frame that it belongs to, whose age stands in the corner.
"""

import sys

import cv2
import numpy as np

from adpc_client import Client


def main(source: str = "0", url: str = "http://localhost:8000") -> None:
    camera = source.isdigit()
    capture = cv2.VideoCapture(int(source) if camera else source)
    if not capture.isOpened():
        sys.exit(f"{f'camera {source}' if camera else source} cannot be opened")
    fps = None if camera else capture.get(cv2.CAP_PROP_FPS)  # a camera has a pace of its own
    with Client(url) as client:
        for _, found in client.follow(capture.read, fps=fps, bgr=True):
            picture = np.array(found.overlay(found.frame, bgr=True))
            shown = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
            text = f"exit {found.exit} of {found.exits}, {1000 * found.age_s:.0f} ms old"
            cv2.putText(shown, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255))
            cv2.imshow("adpc", shown)
            if cv2.waitKey(1) == 27:
                break
    capture.release()
    cv2.destroyAllWindows()


if __name__ == "__main__":
    main(*sys.argv[1:])
