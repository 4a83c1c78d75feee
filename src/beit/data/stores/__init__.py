"""Bytes of files on disk and in remote stores, and files of the hub."""
