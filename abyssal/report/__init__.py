"""Pages that explain themselves: charts, maps and tables as one HTML file without scripts."""
