"""Files: what users' own are read by, and who may write where."""
