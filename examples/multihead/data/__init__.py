"""Products for multi-task learning: generated ones, and JSON lists of records."""

from multihead.data.dataset import ProductDataset
from multihead.data.labels import CLASSES, NUMBERS, TASKS, Labels, Source
from multihead.data.products import GeneratedProducts
from multihead.data.records import JsonProducts

__all__ = [
    "CLASSES", "NUMBERS", "TASKS", "GeneratedProducts", "JsonProducts", "Labels", "ProductDataset", "Source",
]  # fmt: skip
