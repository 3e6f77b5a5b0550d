"""What a person sees of `results.json`: the same content in a terminal and as Markdown."""

from __future__ import annotations

from harness.report.markdown import render_markdown
from harness.report.terminal import print_comparison, print_results

__all__ = ["print_comparison", "print_results", "render_markdown"]
