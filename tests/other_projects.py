"""Our weights in other projects' words, written independently of the importer, and files of them."""

import pickle

import torch


def to_pyslowfast(key: str) -> str:
    """Our key in PySlowFast's words, written independently of the importer."""
    part = key.split(".")
    if part[0] in ("conv1", "bn1"):
        return f"s1.pathway0_stem.{part[0][:-1]}.{part[1]}"
    if part[0] == "fc":
        return f"head.projection.{part[1]}"
    stage = f"s{int(part[0][5]) + 1}.pathway0_"
    if part[1].endswith("_nl"):
        name = part[2] if part[2] == "bn" else f"conv_{part[2]}"
        return f"{stage}nonlocal{part[1][:-3]}.{name}.{part[3]}"
    block = f"{stage}res{part[1]}."
    if part[2] == "downsample":
        return f"{block}branch1{'_bn' if part[3] == '1' else ''}.{part[4]}"
    return f"{block}branch2.{'abc'[int(part[2][-1]) - 1]}{'_bn' if part[2].startswith('bn') else ''}.{part[3]}"


def to_caffe2(key: str) -> str | None:
    """Our key in the words of the paper's Caffe2 files."""
    norms = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    part = key.split(".")
    if part[-1] == "num_batches_tracked":
        return None
    kind = {"weight": "w", "bias": "b"}
    if part[0] == "conv1":
        return "conv1_w"
    if part[0] == "bn1":
        return f"res_conv1_bn_{norms[part[1]]}"
    if part[0] == "fc":
        return f"pred_{kind[part[1]]}"
    stage = int(part[0][5]) + 1
    if part[1].endswith("_nl"):
        kinds = norms if part[2] == "bn" else kind
        return f"nonlocal_conv{stage}_{part[1][:-3]}_{part[2]}_{kinds[part[3]]}"
    if part[2] == "downsample":
        return f"res{stage}_{part[1]}_branch1{'_bn_' + norms[part[4]] if part[3] == '1' else '_w'}"
    branch = f"res{stage}_{part[1]}_branch2{'abc'[int(part[2][-1]) - 1]}"
    return f"{branch}_bn_{norms[part[3]]}" if part[2].startswith("bn") else f"{branch}_w"


def in_words_of(project: str, key: str) -> str | None:
    """Our key in a project's words, written independently of the importer."""
    if project in ("pyslowfast", "caffe2"):
        return {"pyslowfast": to_pyslowfast, "caffe2": to_caffe2}[project](key)
    part = key.split(".")
    if project == "pytorch_resnet3d":
        return ".".join([part[0], part[1][:-3], "nl", *part[2:]]) if part[1].endswith("_nl") else key
    kind = {"c": "conv", "b": "bn"}
    if part[0] in ("conv1", "bn1"):
        return f"backbone.conv1.{part[0][:-1]}.{part[1]}"
    if part[0] == "fc":
        return f"cls_head.fc_cls.{part[1]}"
    where = f"backbone.{part[0]}.{part[1].removesuffix('_nl')}"
    if part[1].endswith("_nl"):
        names = {"out": "conv_out.conv", "bn": "conv_out.bn", "w_f": "concat_project.conv", "theta": "theta.conv"}
        return f"{where}.non_local_block.{names.get(part[2], f'{part[2]}.0.conv')}.{part[3]}"
    if part[2] == "downsample":
        return f"{where}.downsample.{('conv', 'bn')[int(part[3])]}.{part[4]}"
    return f"{where}.conv{part[2][-1]}.{kind[part[2][0]]}.{part[3]}"


def file_of(tmp_path, project: str, network, **beside):
    named = {in_words_of(project, key): value for key, value in network.state_dict().items()}
    named.pop(None, None)
    if project == "mmaction2":  # mmcv leaves the bias out before a norm
        named = {key: value for key, value in named.items() if not key.endswith("conv_out.conv.bias")}
    path = tmp_path / f"{project}.pth"
    if project == "caffe2":
        path.write_bytes(pickle.dumps({"blobs": {k: v.numpy() for k, v in named.items()}}, protocol=2))
    else:
        wrapped = {"pyslowfast": "model_state", "mmaction2": "state_dict"}.get(project)
        torch.save({wrapped: named, **beside} if wrapped else named, path)
    return path
