"""What a run leaves for people and machines to read: `report.html` and `report.json` beside its manifest."""
