"""Find the centroid that a feature is nearest to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from mmdata.errors import ConfigError
from mmdata.stages.verbs import Batch, Map, MapFn, Resources, WorkerContext
from mmdata.storage import Store, digest_json
from mmdata.text.assets import Asset, asset_of

if TYPE_CHECKING:
    import torch


class NearestCentroid(Map):
    """Write `centroid`, the number of the centroid with the largest inner product, and `centroid_is_target`.

    feature    a column of features, such as `l14_img` of `pool: {features: [l14_img]}`
    centroids  a `.pt` file of (K, D) numbers, such as DataComp's small_centroids_l14.pt
    targets    `.pt` files of features of a target set, such as DataComp's in1k_clip_vit_l14_0.pt to _4.pt: a centroid that
               any of these is nearest to is a target. Found once a run folder, by each worker that comes before they are
               there; it takes 2e14 operations for ImageNet-1k and 100,000 centroids: seconds with `resources: {gpus: 1}`, an
               hour without

    Files that bear a name of DataComp's are checked by their SHA-256.
    """

    name: ClassVar[str] = "nearest_centroid"
    not_in_key: ClassVar[set[str]] = {"resources", "centroids", "targets"}  # paths: what lies there is in `weights`

    resources: Resources = Resources(memory_mib=8192)
    feature: str = "l14_img"
    centroids: str
    targets: Annotated[tuple[str, ...], Field(min_length=1)]

    def reads(self) -> tuple[str, ...]:
        """Read the features."""
        return (self.feature,)

    def check(self, fields: dict[str, pa.Field]) -> None:
        """Refuse what is no feature."""
        kind = fields[self.feature].type
        if not (pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)):
            hint = "name one of `pool: {features: [...]}`"
            raise ConfigError(f"`{self.name}` needs features, but `{self.feature}` is {kind}", hint=hint)

    def writes(self) -> tuple[pa.Field, ...]:
        """Write which centroid it is, and whether that is a target."""
        meaning = f"nearest centroid of `{self.feature}`"
        return (
            pa.field("centroid", pa.int32(), metadata={"unit": "number", "meaning": meaning}),
            pa.field("centroid_is_target", pa.bool_(), metadata={"unit": "flag", "meaning": f"{meaning} is of the target set"}),
        )

    def located(self, home: Path) -> "NearestCentroid":
        """Return itself with absolute paths."""
        targets = tuple(str(home / path) for path in self.targets)
        return self.model_copy(update={"centroids": str(home / self.centroids), "targets": targets})

    def files(self) -> tuple[Asset, ...]:
        """Return the files it reads."""
        return tuple(asset_of(Path(path)) for path in (self.centroids, *self.targets))

    def weights(self) -> tuple[str, ...]:
        """Return the digests of centroids and target features."""
        return tuple(asset.sha256 for asset in self.files())

    def holds_model(self) -> bool:
        """It does."""
        return True

    def cautions(self) -> tuple[str, ...]:
        """Return which files are not those that DataComp published."""
        return tuple(f"{asset.path.name} stands in for a file of DataComp's" for asset in self.files() if not asset.published)

    def open(self, ctx: WorkerContext) -> MapFn:
        """Read the centroids, find the targets, and return the searching function."""
        import torch

        from mmdata.models.centroids import nearest, read_array

        if ctx.device == "cpu":
            torch.set_num_threads(self.resources.cpus)
        centroids_KD = torch.from_numpy(read_array(Path(self.centroids))).to(ctx.device)
        targets = self._targets(ctx.store, centroids_KD)

        def search(batch: Batch) -> pa.Table:
            column = batch.table.column(self.feature).combine_chunks()
            there = column.is_valid().to_numpy(zero_copy_only=False)
            features_ND = column.drop_null().flatten().to_numpy().reshape(-1, column.type.list_size)
            found = np.zeros(len(column), np.int32)
            found[there] = nearest(features_ND, centroids_KD)
            columns = [pa.array(found, mask=~there), pa.array(np.isin(found, targets), mask=~there)]
            return pa.table(columns, pa.schema(self.writes()))

        return search

    def _targets(self, store: Store, centroids_KD: "torch.Tensor") -> np.ndarray:
        """Return the numbers of the target centroids: as the run folder has them, or found now and noted there."""
        from mmdata.models.centroids import target_centroids

        name = f"facts/targets-{digest_json(self.weights())[:24]}.i64"
        if not store.exists(name):
            store.create(name, target_centroids([Path(path) for path in self.targets], centroids_KD).astype("<i8").tobytes())
        return np.frombuffer(store.read(name), "<i8")
