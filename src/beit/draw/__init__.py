"""What several capabilities draw: curves, tables, token maps, image panels, the report page."""
