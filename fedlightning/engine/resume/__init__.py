"""What a run needs to resume, and what it must share with the run it resumes."""
