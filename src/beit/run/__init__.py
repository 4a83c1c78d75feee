"""What every training recipe needs around its step: groups, rates, logs, progress, devices."""
