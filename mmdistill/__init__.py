"""mmdistill: distil a large training set of images, graphs, text or interactions into a tiny one."""

__version__ = "0.1.0"
