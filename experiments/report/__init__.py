"""The report of a study: tables, figures, one page; everything is rebuilt from the stored runs."""
