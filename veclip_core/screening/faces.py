"""The check `faces`: where faces are, for whoever wants to blur them. Nothing is blurred here, and no picture blocked for one.

The detector is OpenCV's FaceDetectorYN with the weights of YuNet (face_detection_yunet_2023mar.onnx of opencv_zoo).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from veclip_core.config import Config
from veclip_core.screening.checks import Looks, ScreeningError

if TYPE_CHECKING:
    from PIL.Image import Image


class FacesConfig(Config):
    """What decides the boxes."""

    kind: Literal["faces"] = "faces"
    sha256: str
    """Of the weights' file."""
    min_score: float = 0.6
    """opencv_zoo's own for YuNet."""
    max_overlap: float = 0.3
    """Of two boxes that share more (intersection over union) the surer one stays."""
    most: int = 5_000
    """Boxes looked at in one picture."""


@dataclass(frozen=True)
class FacesCheck:
    """`face_boxes` is JSON: [left, top, right, bottom, score] of each face, as shares of the picture's width and height.

    The first four are what DataComp's `face_bboxes` and img2dataset's blurring take.
    """

    name: ClassVar[str] = "faces"
    columns: ClassVar[pa.Schema] = pa.schema([("face_boxes", pa.string())])
    needs_network: ClassVar[bool] = True
    config: FacesConfig
    model: str

    def open(self) -> Looks:
        import cv2

        try:
            detector = cv2.FaceDetectorYN.create(
                self.model, "", (320, 320), self.config.min_score, self.config.max_overlap, self.config.most
            )
            # Only a picture shows whether the file is of this network.
            detector.detect(np.zeros((320, 320, 3), np.uint8))
        except cv2.error as error:
            raise ScreeningError(
                f"VECLIP_FACE_MODEL={self.model} is no YuNet model that OpenCV {cv2.__version__} can run ({error.err or error})."
                " Fetch face_detection_yunet_2023mar.onnx of opencv_zoo again"
            ) from error

        def faces(pictures: "Sequence[Image]") -> Mapping[str, Sequence[Any]]:
            found = []
            for picture in pictures:
                detector.setInputSize(picture.size)
                _, rows = detector.detect(np.ascontiguousarray(np.asarray(picture)[..., ::-1]))
                found.append(json.dumps(boxes_of(rows, *picture.size)))
            return {"face_boxes": found}

        return faces


def faces_config(model: str) -> FacesConfig:
    """Raises ScreeningError where there is no such file."""
    try:
        return FacesConfig(sha256=hashlib.sha256(Path(model).read_bytes()).hexdigest())
    except OSError as error:
        raise ScreeningError(
            f"VECLIP_FACE_MODEL: no file at {model!r} ({error.strerror}). Set it to face_detection_yunet_2023mar.onnx of opencv_zoo"
        ) from error


def boxes_of(rows: np.ndarray | None, width: int, height: int) -> list[list[float]]:
    """The detector's rows (x, y, width, height, five points, score) as shares of the picture, cut at its edges; surest first."""
    if rows is None:
        return []
    left, top = rows[:, 0], rows[:, 1]
    edges = [left / width, top / height, (left + rows[:, 2]) / width, (top + rows[:, 3]) / height]
    boxes = np.column_stack([*(np.clip(edge, 0, 1) for edge in edges), rows[:, 14]]).astype(float)
    return [[round(value, 4) for value in box] for box in boxes[np.argsort(-boxes[:, 4], kind="stable")].tolist()]
