"""Dense multi-task networks: an encoder with stages, a shared decoder, a head for each task.

`--backbone` names the encoder (encoder.py: MobileNetV2, ResNet; swin.py; vit.py), `--decoder` what follows: refinenet.py,
pyramid.py (FPN), queries.py (FPN and a transformer decoder a task), or mtan.py, which is SegNet as a whole. builder.py puts them
together.
"""
