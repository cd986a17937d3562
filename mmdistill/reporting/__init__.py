"""What people look at: tables, pictures, reports, and runs side by side."""
