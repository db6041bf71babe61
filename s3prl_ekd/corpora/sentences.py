"""The demo corpus's texts: short English sentences out of a small vocabulary, written for this project.

Every word is in CMUdict, and most words occur several times, so that sentences can be held out for dev and test without
holding out words. How they are spoken is ``demo.py``.
"""

from __future__ import annotations

SENTENCES: tuple[str, ...] = tuple(
    line.strip()
    for line in """
    the old dog sleeps by the warm fire
    a small boat waits on the quiet river
    my sister plays the piano every evening
    we walk to the market in the morning
    the children sing a song in the garden
    please open the window and close the door
    the red kite flies over the green hill
    he reads a book under the tall tree
    they drink hot tea in the kitchen
    the train leaves the station at nine
    a bird sings in the tree at night
    my brother has a small red car
    she finds a green stone by the river
    we eat fresh bread and sweet apples
    the farmer feeds the horse and the dog
    cold rain falls on the old roof
    the teacher writes a long letter to her friend
    i hear the music from the street
    our house has a blue door
    the boy runs fast over the bridge
    a girl paints the wall of the school
    the baker makes fresh bread every morning
    snow falls on the hill at night
    my friend drives a blue car to the city
    the cat drinks milk in the kitchen
    two children play a game on the street
    she sings a sweet song every evening
    the moon is bright over the quiet lake
    he opens the old box and finds a letter
    we swim in the cold lake in summer
    the horse runs over the green field
    her brother builds a boat near the lake
    i read a long book in winter
    the sun is warm in the morning
    they wait at the station for the train
    a white horse stands in the field
    the teacher opens the school at nine
    the farmer has two white horses
    my mother grows apples in the garden
    our friend plays music on the street
    the wind is cold in winter
    a boy and a girl walk over the bridge
    she drives to the market in a white car
    the old farmer drinks hot milk
    we sing and play music every evening
    he paints a small boat on the wall
    the dog runs after the red ball
    my sister writes a letter to our mother
    the children swim in the river in summer
    please wait for me near the bridge
    bright stars stand over the dark hill
    the baker opens the door at nine
    i drink fresh milk every morning
    they build a tall house near the school
    the dark wind blows over the field
    a green bird sits on the roof
    her mother makes sweet tea for us
    the cat sleeps under the old table
    we find two stones by the lake
    he drives the long road to the city
    the girl throws the ball over the wall
    my brother sleeps in the small room
    rain and wind fall on the city
    please read the letter to my mother
    the boat is under the bridge
    the fire is hot and bright
    she eats an apple near the window
    our teacher plays the piano in the school
    the station is near the old market
    i see the moon and the stars
    the boy feeds the cat in the kitchen
    two birds sit on the tall tree
    summer is warm and winter is cold
    they eat hot bread by the fire
    the road to the lake is long
    a friend waits for me at the station
    the wall of the garden is old
    she closes the box and the window
    the children throw snow in winter
    my sister has a sweet white cat
    we hear the train at night
    the sun is bright over the river
    he makes a table for our kitchen
    the quiet room has a small window
    please close the door of the car
    the farmer walks over the hill in the rain
    i find a book on the table
    the music from the market is fast
    her friend grows tall trees in the garden
    a long boat leaves the city at night
    the baker and the teacher drink tea
    the dog waits by the blue door
    we see a red bird on the roof
    they play the game in the dark
    the mother sings to the small girl
    my horse is fast and my dog is old
    the street is quiet in the evening
    she reads to the children at night
    the white moon stands over the road
    he walks home from the school in the snow
    """.strip().splitlines()
)
