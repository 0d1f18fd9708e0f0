"""The data sets as tensors of images, and batches made from them on the training device."""
