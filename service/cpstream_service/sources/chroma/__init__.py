"""Chroma as a source: a collection in a folder or on a server. Only read, write, server and folder of these import chromadb."""
