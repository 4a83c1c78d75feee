"""The corruptions of ImageNet-C (Hendrycks & Dietterich 2019), computed on the fly."""
