"""The report on a query run: one HTML file that needs no server and no network."""
