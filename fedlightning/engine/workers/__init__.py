"""Several processes that share a cohort."""
