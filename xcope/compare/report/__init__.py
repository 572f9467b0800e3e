"""What a comparison writes: tables, plots, pages."""
