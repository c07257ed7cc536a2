"""Repairs: what a check finds is put right in a new commit, counted anew and checked before a byte is written.

Like the checker it uses nothing of the storage room but its devices. `run` is the whole, `blocks` mends block trees and
inodes, `names` directories and names, `fields` records and tables, and `system` counts anew.
"""

from cowfs.check.repair.run import PHASES, REASONS, Repair, copy_device, plan_repair

__all__ = ["PHASES", "REASONS", "Repair", "copy_device", "plan_repair"]
