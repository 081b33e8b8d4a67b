"""A plan in other tools' own words: one module for each tool."""
