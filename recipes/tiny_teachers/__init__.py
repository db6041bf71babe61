"""The trainer of the embedded teachers: masked prediction of k-means units (HuBERT, arXiv 2106.07447).

Modules, from the bottom up; each imports only what stands above it, and the package never imports this recipe:

- ``settings.py``: what a teacher's YAML file may say
- ``units.py``: MFCC or an encoder's states -> k-means -> one unit a frame
- ``crops.py``: batches of equal-length crops with their units; distortion and utterance mixing
- ``objective.py``: mask, predict, loss
- ``train.py``: one stage: the loop, its log, its checkpoints
- ``ship.py``: a trained encoder -> a transformers folder with the record of its training
- ``__main__.py``: the command
"""
