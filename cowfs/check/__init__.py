"""Is a volume sound? A checker that counts for itself, and dumps of everything that a volume holds.

Nothing here uses the logic of the storage room; only its devices.
"""

from cowfs.check.check import check_device, check_image
from cowfs.check.dump import USAGES as DUMP_USAGES
from cowfs.check.dump import dump_lines
from cowfs.check.problem import KINDS, Counts, Kind, Problem, Report

__all__ = ["DUMP_USAGES", "KINDS", "Counts", "Kind", "Problem", "Report", "check_device", "check_image", "dump_lines"]
