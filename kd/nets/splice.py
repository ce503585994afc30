"""One net up to a layer, continued by the rest of another net."""

from collections.abc import Callable

from torch import Tensor, fx, nn

HOLDING = ("call_module", "get_attr")  # graph operations that refer to a part of the net


class CutError(Exception):
    """Reason why a net cannot be cut at a layer."""


class _Around(fx.Tracer):
    """Tracer that enters the net and the modules around a layer; it calls all others whole."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        """Whether to call a module whole."""
        return not self.path.startswith(f"{qualified_name}.")


def graph_around(net: nn.Module, path: str) -> tuple[fx.Graph, fx.Node]:
    """Trace the forward pass with the module at `path` as one node; returns graph and node.

    Raises:
        CutError: the forward pass depends on its values or on the mode, or calls the module more
            than once.
    """
    graphs = []
    before = net.training
    try:
        for mode in (True, False):
            graphs.append(_Around(path).trace(net.train(mode)))
    except Exception as error:  # a forward pass may do anything with a placeholder
        raise CutError(
            f"its forward pass cannot be followed: {str(error).splitlines()[0]}"
        ) from error
    finally:
        net.train(before)
    if len({str(graph) for graph in graphs}) > 1:
        raise CutError("its forward pass is another one in training")
    calls = [each for each in graphs[0].nodes if each.op == "call_module" and each.target == path]
    if len(calls) != 1:
        raise CutError(f"its forward pass calls {path!r} {len(calls)} times")
    return graphs[0], calls[0]


def splice(
    one: nn.Module,
    cut_one: str,
    other: nn.Module,
    cut_other: str,
    name: Callable[[str], str],
) -> tuple[fx.GraphModule, dict[str, str]]:
    """Join `one` up to and including a layer with what `other` does after its layer.

    Args:
        cut_one, cut_other: paths of the layers.
        name: maps a path in `other` to the new net; paths of `one` are kept.

    Returns:
        the new net, which holds the same modules; and the paths in `other` by their new names.

    Raises:
        CutError: a net cannot be traced, or `other` needs more than that layer's output.
    """
    graph = fx.Graph()
    known = dict[fx.Node, fx.Node]()
    source, cut = graph_around(one, cut_one)
    for node in source.nodes:
        known[node] = graph.node_copy(node, lambda each: known[each])
        if node is cut:
            break
    modules = {str(n.target): _at(one, str(n.target)) for n in known if n.op in HOLDING}
    source, start = graph_around(other, cut_other)
    known, taken = {start: known[cut]}, dict[str, str]()
    for node in source.nodes:
        complete = all(each in known for each in node.all_input_nodes)
        if node.op == "output":
            if not complete:
                raise CutError(f"it needs more than what {cut_other!r} returns")
            graph.output(fx.map_arg(node.args[0], lambda each: known[each]))
        elif node.op != "placeholder" and node not in known and complete:
            known[node] = copied = graph.node_copy(node, lambda each: known[each])
            if node.op in HOLDING:
                theirs = str(node.target)
                copied.target = ours = name(theirs)
                modules[ours] = _at(other, theirs)
                taken[ours] = theirs
    found = fx.GraphModule(modules, graph)
    found.graph.eliminate_dead_code()
    found.delete_all_unused_submodules()
    found.recompile()
    used = {node.target for node in found.graph.nodes}
    return found, {ours: theirs for ours, theirs in taken.items() if ours in used}


def _at(net: nn.Module, path: str) -> nn.Module | Tensor:
    found: nn.Module | Tensor = net
    for part in path.split("."):
        found = getattr(found, part)
    return found


def after(net: fx.GraphModule, cut: str, maps: Tensor) -> Tensor:
    """Compute a net's output when its layer at `cut` returns `maps` [B, C, H, W]."""
    graph = fx.Graph()
    known = {}
    for node in net.graph.nodes:
        if node.op == "call_module" and node.target == cut:
            known[node] = graph.placeholder("maps")
        elif all(each in known for each in node.all_input_nodes) and node.op != "placeholder":
            known[node] = graph.node_copy(node, lambda each: known[each])
    found: Tensor = fx.GraphModule(net, graph)(maps)
    return found
