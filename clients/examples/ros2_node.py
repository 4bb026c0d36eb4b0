"""A ROS 2 node that answers each image of the topic `image` with a mask on the topic `mask`.

    ros2 run YOUR_PACKAGE ros2_node --ros-args -r image:=/camera/image_raw -p url:=http://gpu:8000 -p deadline_ms:=60.0

A mask has the header of its image, and with it the stamp: message_filters can put the two together again. Both topics
keep the last message only, so the node never works on an old image: while it waits for an answer, newer images replace
each other. The deadline says when the mask is needed; it holds the best one that was there by then.
"""

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from adpc_client import AdpcError, Client

NEWEST = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


class Segmenter(Node):
    def __init__(self) -> None:
        super().__init__("segmenter")
        self.client = Client(self.declare_parameter("url", "http://localhost:8000").value)
        self.deadline_ms = self.declare_parameter("deadline_ms", 100.0).value
        self.masks = self.create_publisher(Image, "mask", NEWEST)
        self.create_subscription(Image, "image", self.segment, NEWEST)

    def segment(self, image: Image) -> None:
        try:
            pixels = pixels_of(image)
            found = self.client.predict(
                pixels, deadline_ms=self.deadline_ms, bgr=image.encoding == "bgr8", jpeg_quality=90
            )
        except (
            AdpcError,
            ValueError,
        ) as error:  # the robot goes on; what reads masks sees by the stamp that one is old
            self.get_logger().warning(f"no mask: {error}", throttle_duration_sec=1.0)
            return
        height, width = found.mask.shape
        self.masks.publish(
            Image(
                header=image.header,
                height=height,
                width=width,
                encoding="mono8",
                step=width,
                data=found.mask.tobytes(),
            )
        )


def pixels_of(image: Image) -> np.ndarray:
    """uint8 (H, W, 3), or (H, W) for grey. Raises ValueError for other encodings."""
    channels = {"rgb8": 3, "bgr8": 3, "mono8": 1}.get(image.encoding)
    if channels is None:
        raise ValueError(f"the image is {image.encoding}; convert it to rgb8, bgr8 or mono8")
    lines = np.frombuffer(image.data, np.uint8).reshape(image.height, image.step)[:, : image.width * channels]
    shape = (image.height, image.width, 3) if channels == 3 else (image.height, image.width)
    return lines.reshape(shape)


def main() -> None:
    rclpy.init()
    node = Segmenter()
    try:
        rclpy.spin(node)
    finally:
        node.client.close()
        node.destroy_node()


if __name__ == "__main__":
    main()
