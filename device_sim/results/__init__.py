"""The document of a run, and what is made of it: text, HTML, CSV, JUnit XML, a comparison."""
