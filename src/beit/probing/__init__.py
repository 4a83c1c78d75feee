"""Measure frozen features with linear and attentive probes and with nearest neighbours."""
