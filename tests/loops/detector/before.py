"""A detector under Lightning's manual optimisation: two heads on a pyramid of two feature maps."""

import lightning as L
import torch
from torch.nn import functional as F


class Detector(L.LightningModule):
    def __init__(self, trunk, boxes, classes):
        super().__init__()
        self.automatic_optimization = False
        self.trunk, self.boxes, self.classes = trunk, boxes, classes

    def training_step(self, batch, batch_idx):
        images, boxes, classes = batch
        optimizer = self.optimizers()
        features = self.trunk(images)
        box_loss = F.l1_loss(self.boxes(features), boxes)
        class_loss = F.cross_entropy(self.classes(features), classes)
        optimizer.zero_grad()
        self.manual_backward(box_loss + class_loss)
        optimizer.step()
        self.log_dict({"boxes": box_loss, "classes": class_loss})

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)
