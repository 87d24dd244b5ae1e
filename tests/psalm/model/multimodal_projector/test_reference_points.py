import torch

from psalm.model.multimodal_projector.reference_points import centre_points, proposal_points, valid_extent

RES2 = torch.zeros(2, 4, 32, 32)  # an image of 128 x 128 pixels


def test_extent_is_the_share_of_the_padded_image_that_is_valid():
    extent = valid_extent(torch.tensor([[128, 64], [96, 128]]), RES2, stride=4)
    assert extent.tolist() == [[[0.5, 1.0]], [[1.0, 0.75]]]
    assert valid_extent(None, RES2, stride=4).tolist() == [[[1.0, 1.0]]]


def test_extent_is_exact_for_half_precision_features():
    extent = valid_extent(torch.tensor([[127, 125]]), RES2.bfloat16(), stride=4)
    assert extent.tolist() == [[[125 / 128, 127 / 128]]]


def test_centre_is_that_of_the_valid_area():
    extent = valid_extent(torch.tensor([[128, 64], [96, 128]]), RES2, stride=4)
    points = centre_points(torch.zeros(2, 3, 8), extent)
    assert points[0].tolist() == [[0.25, 0.5]] * 3
    assert points[1].tolist() == [[0.5, 0.375]] * 3


def proposals(res5: torch.Tensor, queries: torch.Tensor, extent: list[float]) -> list[list[float]]:
    return proposal_points(queries[None], res5[None], (2, 4), torch.tensor([[extent]]))[0].tolist()


def test_proposal_is_the_pixel_with_the_highest_cosine_similarity_not_the_longest():
    res5 = torch.zeros(8, 2)
    res5[6] = torch.tensor([0.1, 0.0])  # row 1, column 2
    res5[3] = torch.tensor([9.0, 9.0])  # row 0, column 3
    assert proposals(res5, torch.tensor([[2.0, 0.0], [1.0, 1.0]]), [1.0, 1.0]) == [[0.625, 0.75], [0.875, 0.25]]


def test_proposal_is_never_in_the_padding():
    res5 = -torch.ones(8, 2)
    res5[0] = torch.tensor([0.0, -1.0])
    res5[6:] = 1.0
    assert proposals(res5, torch.ones(1, 2), [0.5, 1.0]) == [[0.125, 0.25]]


def test_proposal_on_a_pixel_that_straddles_the_edge_is_moved_onto_it():
    res5 = torch.zeros(8, 2)
    res5[1] = 1.0  # columns 0.25 to 0.5, of which 0.25 to 0.3 are valid
    points = proposals(res5, torch.ones(1, 2), [0.3, 1.0])
    torch.testing.assert_close(torch.tensor(points), torch.tensor([[0.3, 0.25]]))
