<?php $url = "http://search:7700";
