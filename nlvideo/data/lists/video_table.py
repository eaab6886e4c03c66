from nlvideo.data.lists.path_list import VideoTable as VideoTable
