"""DPIAT (Czyzewski, Nowak, Piechowiak 2022), the method that transfers are compared with."""
