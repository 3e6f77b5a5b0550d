"""Files made elsewhere, brought into the harness's own forms: responses (`responses.py`), the authors' public data
(`sami_paper.py`). They are data: read, checked and counted, never executed. `folder.py` writes what comes of it."""
