"""The documentation as a site: what mkdocs.yml needs beside MkDocs and its theme."""
