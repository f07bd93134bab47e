"""A file system of Apache Beam's that is not this machine's, as far as names tell: elsewhere://tmp/x is /tmp/x."""

from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem

SCHEME = "elsewhere:/"


class Elsewhere(LocalFileSystem):
    @classmethod
    def scheme(cls):
        return "elsewhere"

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        folder = dir_or_prefix.removeprefix(SCHEME)
        for each in super()._list(folder):
            yield FileMetadata(SCHEME + each.path, each.size_in_bytes)

    def open(self, path, *arguments, **options):
        return super().open(path.removeprefix(SCHEME), *arguments, **options)

    def create(self, path, *arguments, **options):
        return super().create(path.removeprefix(SCHEME), *arguments, **options)

    def metadata(self, path):
        found = super().metadata(path.removeprefix(SCHEME))
        return FileMetadata(path, found.size_in_bytes, found.last_updated_in_seconds)

    def exists(self, path):
        return super().exists(path.removeprefix(SCHEME))

    def delete(self, paths):
        super().delete([path.removeprefix(SCHEME) for path in paths])
