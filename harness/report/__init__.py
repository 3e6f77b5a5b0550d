"""What a person sees of `results.json`: a first screen, every table in a terminal, and report.md."""

from __future__ import annotations

from harness.report.first_screen import print_first_screen
from harness.report.markdown import render_markdown
from harness.report.terminal import print_comparison, print_results

__all__ = ["print_comparison", "print_first_screen", "print_results", "render_markdown"]
