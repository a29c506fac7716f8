"""The commands `fico-export` and `fico VERB`: one file per verb; the only place that prints."""
