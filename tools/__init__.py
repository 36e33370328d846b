"What builds the site and README.md from the notebooks, and runs them. Not part of the package."
