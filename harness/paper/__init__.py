"""The paper that the harness was built around (Fränken et al., NeurIPS 2024, arXiv 2404.14313): its figures, and how they
come out of the authors' public verdicts."""
