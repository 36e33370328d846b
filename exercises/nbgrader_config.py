"nbgrader's settings: `nbgrader generate_assignment`, `autograde` and `formgrader` work in this folder."
c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "multiscene_rec"
c.CourseDirectory.ignore = [".ipynb_checkpoints", "*.pyc", "__pycache__", "feedback", "wrong.toml"]
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\nraise NotImplementedError()"}
c.ClearSolutions.text_stub = "YOUR ANSWER HERE"
c.IncludeHeaderFooter.header = ""
c.ExecutePreprocessor.timeout = 60
