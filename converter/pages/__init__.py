"""Reports that one looks at: HTML files that stand alone, made of sections."""
