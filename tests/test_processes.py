"""What starts other processes: the port they meet on."""

from torch.distributed import TCPStore

from flare_ds.processes import free_port


def test_no_port_is_given_twice_and_each_can_be_listened_on() -> None:
    """Two runs that start at the same time met on one port, now and then: 500 plain binds give some port twice."""
    ports = [free_port() for _ in range(500)]
    assert len(set(ports)) == len(ports)
    store = TCPStore("127.0.0.1", int(ports[0]), is_master=True, wait_for_workers=False)
    assert store.port == int(ports[0])
