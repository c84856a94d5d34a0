"""Documents in a Dask frame: read them, give them ids, map over them, write them."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from nemo_sdg.data.backend import is_cudf, resolve_backend
from nemo_sdg.data.files import FileFormat, InputFiles
from nemo_sdg.data.frames import declared, run_each, schema_of, to_frame, to_table
from nemo_sdg.data.ids import with_ids
from nemo_sdg.data.io import Source, open_source, require_text
from nemo_sdg.data.parts import Existing, PartFormat, begin_folder, finish_folder, write_part
from nemo_sdg.errors import DataError

if TYPE_CHECKING:
    import dask.dataframe as dd
    import pandas as pd

Backend = Literal["auto", "pandas", "cudf"]


class DocumentDataset:
    """A table of documents, one per row, in the partitions of a Dask frame.

    Partitions are pandas on a CPU and cuDF on a GPU. No method changes the dataset or a frame
    that was handed in: each returns a new dataset. Nothing is read before it is needed; methods
    that compute say so.

        dataset = DocumentDataset.read_json("articles/*.jsonl.gz")
        dataset.with_ids().to_parquet("articles_parquet")
    """

    def __init__(self, df: Any) -> None:
        """Wrap a Dask frame, as `from_dask` does."""
        if df is not None and not hasattr(df, "npartitions"):
            raise DataError(
                f"a DocumentDataset wraps a Dask frame, not a {type(df).__name__}; "
                "from_pandas takes a pandas frame, read_json and read_parquet read files"
            )
        self._df = df
        self._source: Source | None = None
        self._resize: tuple[dict[str, Any], ...] = ()
        self._inputs: tuple[str, ...] = ()

    # --- made from

    @classmethod
    def read_json(
        cls,
        input_files: InputFiles,
        *,
        backend: Backend = "auto",
        blocksize: int | str = "256MB",
        files_per_partition: int | None = None,
        columns: Sequence[str] | None = None,
        add_filename: bool = False,
        text_field: str | None = None,
        column_types: Mapping[str, str] | None = None,
    ) -> DocumentDataset:
        """Read JSON lines, plain, gzip (`.gz`) or zstd (`.zst`), lazily.

        Now, at most 8 MiB of up to 64 files are read (head, and for large files middle and end),
        to learn columns and types. Integers are `Int64` and stay so with nulls; booleans
        `boolean`; numbers with fractions `float64`; text `str`; lists of these Arrow lists.
        Objects, lists of objects and columns of mixed type are carried as JSON text. A field that
        a line lacks is null. A field that the sample did not show is left out unless
        `column_types` names it.

        Later, each partition reads its bytes. A line belongs to the block in which it begins and
        is never cut: one larger than the block makes its partition larger, and blocks that lie
        wholly inside it are empty. A compressed file is one partition. Half surrogate pairs become
        U+FFFD, `NaN` becomes null.

        Args:
            input_files: path, glob, folder, fsspec URL, or a list of these. Credentials and options
                of object stores come from the environment or fsspec's own configuration.
            backend: `auto` is cuDF where a GPU works, else pandas.
            blocksize: bytes of text per partition, such as `"64MB"`; small files share one.
            files_per_partition: cut by whole files instead.
            columns: take these only; others are parsed but not kept.
            add_filename: add `file_name`, the path relative to the folder or glob root.
            text_field: a column that must be there and must hold strings (or null).
            column_types: types that replace the sample's: `string`, `int64`, `double`, `bool`, or
                `list<...>` of one.

        Raises:
            DataError: nothing matches; formats are mixed; a folder is unfinished; a column is
                missing; a line is broken, not UTF-8, not an object, or does not fit its column.
                Lines outside the sample raise when their partition is computed.
            BackendError: `cudf` where it cannot run.
        """
        return cls._open(
            input_files,
            "jsonl",
            backend=backend,
            blocksize=blocksize,
            files_per_partition=files_per_partition,
            columns=columns,
            add_filename=add_filename,
            text_field=text_field,
            column_types=column_types,
        )

    @classmethod
    def read_parquet(
        cls,
        input_files: InputFiles,
        *,
        backend: Backend = "auto",
        blocksize: int | str = "256MB",
        files_per_partition: int | None = None,
        columns: Sequence[str] | None = None,
        add_filename: bool = False,
        text_field: str | None = None,
        column_types: Mapping[str, str] | None = None,
    ) -> DocumentDataset:
        """Read Parquet, lazily; arguments and dtypes as `read_json`.

        Now, the footers of up to 64 files are read, and those of files larger than a block.
        `blocksize` counts bytes as unpacked; a file is cut between row groups, never inside one.
        Structs, maps and lists of such are carried as JSON text; a column that a file lacks is null
        there.

        Raises:
            DataError: as `read_json`; or files whose columns have types that do not go together.
            BackendError: `cudf` where it cannot run.
        """
        return cls._open(
            input_files,
            "parquet",
            backend=backend,
            blocksize=blocksize,
            files_per_partition=files_per_partition,
            columns=columns,
            add_filename=add_filename,
            text_field=text_field,
            column_types=column_types,
        )

    @classmethod
    def read(cls, input_files: InputFiles, **options: Any) -> DocumentDataset:
        """Read JSON lines or Parquet, whichever the file names say; options as `read_json`."""
        return cls._open(input_files, None, **options)

    @classmethod
    def _open(
        cls,
        input_files: InputFiles,
        file_format: FileFormat | None,
        **options: Any,
    ) -> DocumentDataset:
        source = open_source(input_files, file_format, **options)
        return cls(None).from_source(source)

    @classmethod
    def from_pandas(
        cls, df: pd.DataFrame, npartitions: int = 1, *, backend: Backend = "pandas"
    ) -> DocumentDataset:
        """Take the rows of a pandas frame, in their order and with their index.

        Columns of dtype `object` become text or Arrow lists (dictionaries become JSON text).

        Raises:
            DataError: a column mixes types.
        """
        import dask
        import dask.dataframe as dd

        if not hasattr(df, "iloc"):
            raise DataError(f"from_pandas takes a pandas frame, not a {type(df).__name__}")
        if npartitions < 1:
            raise DataError(f"npartitions must be 1 or more, not {npartitions}.")
        rows = declared(df)
        edges = [len(rows) * i // npartitions for i in range(npartitions + 1)]
        slices = [rows.iloc[start:stop] for start, stop in pairwise(edges)]
        # Not `dd.from_pandas`: it cuts by index value where the index is sorted, so that equal
        # ones fall together. Nor its conversion: it makes `str` another text dtype.
        with dask.config.set({"dataframe.convert-string": False}):
            frame = dd.from_map(_itself, slices, meta=rows.iloc[:0], label="from-pandas")
        if resolve_backend(backend) == "cudf":
            meta = _to_cudf(frame._meta)
            frame = frame.map_partitions(_to_cudf, meta=meta)
        return cls(frame)

    @classmethod
    def from_dask(cls, df: dd.DataFrame) -> DocumentDataset:
        """Take a Dask frame, pandas or cuDF, as it is."""
        return cls(df)

    def from_source(self, source: Source) -> DocumentDataset:
        """Return a dataset over `source`, cut as this one was by `repartition`."""
        frame = source.frame()
        for options in self._resize:
            frame = frame.repartition(**options)
        made = self.replace_frame(frame, same_rows=True)
        made._source = source
        made._inputs = tuple(file.url for file in source.files)
        return made

    def replace_frame(self, df: Any, *, same_rows: bool = False) -> DocumentDataset:
        """Return a dataset over another frame; `same_rows` says that it has the very same rows."""
        made = DocumentDataset(df)
        made._inputs = self._inputs
        if same_rows:
            made._source, made._resize = self._source, self._resize
        return made

    # --- what it is

    @property
    def df(self) -> Any:
        """The Dask frame."""
        return self._df

    @property
    def source(self) -> Source | None:
        """The files behind the rows, None once rows may have been changed."""
        return self._source

    def readers(self) -> list[Callable[[], Any]] | None:
        """Return for each partition what reads it from its files; None where rows come from others.

        They are small, picklable, and stand for the same rows as `df.to_delayed()`.
        """
        if self._source is None or self._resize:
            return None
        return [partial(self._source.loader, splits) for splits in self._source.partitions]

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in order."""
        return [str(column) for column in self._df.columns]

    @property
    def npartitions(self) -> int:
        """The number of partitions."""
        return int(self._df.npartitions)

    @property
    def backend(self) -> Literal["pandas", "cudf"]:
        """The library of the partitions."""
        return "cudf" if is_cudf(self._df._meta) else "pandas"

    def __repr__(self) -> str:
        return (
            f"DocumentDataset(columns={self.columns}, npartitions={self.npartitions}, "
            f"backend={self.backend!r})"
        )

    def __len__(self) -> int:
        """Count the rows: computes every partition."""
        return len(self._df)

    # --- changed

    def with_ids(self, id_field: str = "id") -> DocumentDataset:
        """Return a dataset with a column of row ids; see `nemo_sdg.data.ids.with_ids`."""
        return with_ids(self, id_field)

    def apply(self, function: Callable[..., Any], meta: Any, **options: Any) -> DocumentDataset:
        """Return a dataset whose partitions are `function(partition, **options)`.

        Args:
            function: takes and returns a pandas or cuDF frame; must not change its argument.
            meta: an empty frame with the columns and dtypes that `function` returns; it is
                never found out by calling `function`.
            options: handed to `function`.
        """
        return self.replace_frame(self._df.map_partitions(function, meta=meta, **options))

    def repartition(
        self, npartitions: int | None = None, *, partition_size: int | str | None = None
    ) -> DocumentDataset:
        """Return the same rows in the same order in other partitions.

        Args:
            npartitions: how many; partitions are joined, or cut by rows.
            partition_size: bytes in memory per partition instead; computes all of them once.
        """
        options = {"npartitions": npartitions, "partition_size": partition_size}
        options = {key: value for key, value in options.items() if value is not None}
        made = self.replace_frame(self._df.repartition(**options), same_rows=True)
        made._resize = (*self._resize, options)
        return made

    def persist(self) -> DocumentDataset:
        """Compute the partitions and keep them in memory (of the cluster, where there is one)."""
        return self.replace_frame(self._df.persist(), same_rows=True)

    # --- handed over

    def check_text(self, text_field: str = "text") -> None:
        """Raise DataError unless the column is there and holds strings; computes nothing."""
        require_text(schema_of(self._df._meta), text_field)

    def head(self, n: int = 5) -> pd.DataFrame:
        """Return the first rows as pandas; computes only the partitions they stand in."""
        import pandas as pd

        frame = self._as_pandas()
        taken = [frame._meta.iloc[:0]]
        for number in range(self.npartitions):
            missing = n - sum(len(frame) for frame in taken)
            if missing <= 0:
                break
            taken.append(frame.partitions[number].compute().head(missing))
        filled = [frame for frame in taken if len(frame)] or taken[:1]
        return _renumbered(pd.concat(filled))

    def to_pandas(self) -> pd.DataFrame:
        """Compute all rows into one pandas frame; numbered anew where partitions number alike."""
        return _renumbered(self._as_pandas().compute())

    def _as_pandas(self) -> Any:
        # Where the partitions are: a client without a card, or without spilling, takes no cuDF.
        if not is_cudf(self._df._meta):
            return self._df
        return self._df.map_partitions(_to_pandas, meta=_to_pandas(self._df._meta.iloc[:0]))

    def to_parquet(
        self, folder: str | os.PathLike[str], *, overwrite: bool = False
    ) -> dict[str, Any]:
        """Compute, write one Parquet part per partition, and return the manifest.

        All parts have one schema, empty ones too. See `nemo_sdg.data.parts` for the guarantees.

        Raises:
            DataError: the folder holds parts and `overwrite` is off, or is read by this dataset.
        """
        return self._write(folder, "parquet", overwrite=overwrite)

    def to_json(
        self,
        folder: str | os.PathLike[str],
        *,
        compression: Literal["gz", "zst"] | None = None,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Compute, write one part of JSON lines per partition, and return the manifest.

        Raises:
            DataError: as `to_parquet`; or a column of bytes, which JSON cannot hold.
        """
        formats: dict[str | None, PartFormat]
        formats = {None: "jsonl", "gz": "jsonl.gz", "zst": "jsonl.zst"}
        if compression not in formats:
            raise DataError(f"The compression {compression!r} is none of 'gz', 'zst', None.")
        return self._write(folder, formats[compression], overwrite=overwrite)

    def _write(
        self, folder: str | os.PathLike[str], file_format: PartFormat, *, overwrite: bool
    ) -> dict[str, Any]:
        import fsspec

        # Workers write, and a relative path means another folder where they were started.
        folder = os.fspath(folder)
        if "://" not in folder and "::" not in folder:
            folder = os.path.abspath(os.path.expanduser(folder))
        target = fsspec.core.url_to_fs(folder)
        for url in self._inputs:
            fs, path = fsspec.core.url_to_fs(url)
            if type(fs) is type(target[0]) and posixpath.dirname(path) == target[1]:
                raise DataError(f"{folder} is read by this dataset; write to another folder.")
        existing: Existing = "replace" if overwrite else "refuse"
        schema = schema_of(self._df._meta)
        begin_folder(folder, existing)
        write = partial(write_part, folder, file_format=file_format, schema=schema)
        return finish_folder(folder, run_each(write, enumerate(self._df.to_delayed())), schema)


def _itself(frame: Any) -> Any:
    return frame


def _to_cudf(frame: Any) -> Any:
    return to_frame(to_table(frame, schema_of(frame)), "cudf")


def _to_pandas(frame: Any) -> Any:
    """Return a computed frame as pandas, with the dtypes that pandas partitions have."""
    if not is_cudf(frame):
        return frame
    return to_frame(to_table(frame, schema_of(frame)), "pandas").set_axis(frame.index.to_pandas())


def _renumbered(frame: pd.DataFrame) -> pd.DataFrame:
    return frame if frame.index.is_unique else frame.reset_index(drop=True)
